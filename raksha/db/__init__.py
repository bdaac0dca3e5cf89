"""The database of the service: the queue and the truth.

Promises::

    a state changes by compare-and-swap, in `transition` alone, along the moves that `moves` lists
    what must happen once is a UNIQUE constraint, never a lock or a leader
    time that decides anything is the database's (`columns.now()`), in microseconds UTC
    the same code on MariaDB, SQLite and PostgreSQL

Work is done in whole transactions: `Database.run(work)` calls `work(session)` again if the database gave it up
(deadlock, locked, connection lost before the commit). So `work` does nothing but database work.

    session       the engine, transactions, their repetition
    models        the tables
    columns       types and the clock, the same on every database
    moves         legal moves of every noun;    transition   the only writer of states
    paging        limit, marker, sort
    jobs, runs, tasks, backups, services, vaults, restores, …   queries, one noun a module
    migrate       where the migrations are, and how they are run

Not here: deciding (scheduler), and anything an agent runs: agents have no database.
"""
