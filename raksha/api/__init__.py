"""The REST API: what tenants and operators ask for, over HTTP.

    app          the application and the layers that a request goes through; the list of nouns
    nouns        how a noun joins: `Noun.operation` makes a route with its policy rule, schemas and documentation
    services     what views are given: settings, database, authenticator, identity of the caller
    errors       one body for every error; the table from errors to statuses
    auth, http_basic   who a caller is;      policy   what it may do
    bodies       strict fields and documents;   schedules  those of a schedule
    pagination, etag, idempotency, links, request_id, versions   conventions: docs/api.md
    health, pages      for everybody: /healthcheck, /, /v1/, /openapi.json, /docs

Promises: no way in without a policy rule; what belongs to another project is not there; what is not understood is
refused before anything is done; every error has the same body and the id of its request.
Not here: deciding (scheduler), talking to hosts (agent). Views change the database, and the database is the queue.
"""
