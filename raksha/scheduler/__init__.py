"""What is due becomes runs, runs become tasks, ended tasks end runs. Any number of schedulers, none of them special.

    tick            jobs whose time has come            ->  a queued run each, once, whoever fires
    dispatch        queued runs, fair between projects  ->  all their slots and claimable tasks, or nothing and a reason
    reap            leases that ended, late groups      ->  claimed again by the same host, queued again, or failed
    advance         runs whose tasks have ended         ->  ready to be committed, or failed and retried
    committing      runs that are ready for it          ->  restore points, in the vault and then here; hosts are told
    restore_start   queued restores                     ->  claimable tasks
    retaining       jobs with new points                ->  runs that are kept no longer
    deleting        runs on their way out               ->  gone, after others stand alone (consolidating)
    collecting      vaults                              ->  without what no restore point needs
    serve           whatever agents ask                 ->  agents, claims, groups; what follows from it: outcome

Every step is one or more transactions that may be broken off anywhere: what is there says what is left to do. No step
needs to know what another scheduler does; each change is a compare-and-swap or a constraint, so of two that do the same
one does it. Nothing here is remembered between two rounds.
"""
