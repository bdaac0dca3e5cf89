# Short names for what is done often. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: slow help setup test unit contract functional service crash-walk soak cloud-up cloud-down openstack lint types imports docs api-documents sample-configuration bench bench-service quickstart clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: ## install what is needed, make .venv
	scripts/setup --tests

test: ## lint, types, imports, docs, and all tests but those that take long
	./run-tests

unit: ## quick tests without any daemon
	./run-tests unit

contract: ## the vault's contract against every store, a real Swift among them
	./run-tests contract

functional: ## tests with real guests, libvirt, qemu-img and Swift
	./run-tests functional

slow: ## the tests that take long by themselves
	./run-tests slow

service: ## three hosts, two schedulers, two APIs, MariaDB, RabbitMQ, Swift, and kills: make service KILLS=200 SEED=1
	$(if $(SEED),RAKSHA_SEED=$(SEED)) $(if $(KILLS),RAKSHA_KILLS=$(KILLS)) ./run-tests service

openstack: ## tests against a real OpenStack on this machine (brings it up, and leaves it up)
	./run-tests openstack

cloud-up: ## bring up a real OpenStack on this machine: packages 5 min once, then 3 min
	scripts/setup --cloud
	.venv/bin/python -m tests.openstack.cloud up

cloud-down: ## end it; WIPE=1 removes its data too
	.venv/bin/python -m tests.openstack.cloud down $(if $(WIPE),--wipe)

crash-walk: ## kill -9 at every crash point of every command, both engines; every fault of a vault (hours)
	RAKSHA_CRASH_SAMPLE=0 ./run-tests functional -s -k "crash_walk or crash_frozen or kills or vault_faults"

soak: ## random events and the oracle after each: make soak SECONDS=600 SEED=1
	scripts/setup --tests
	.venv/bin/python -m tests.soak --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

lint: ## ruff
	./run-tests lint

types: ## mypy, strict
	./run-tests types

imports: ## the layers of docs/architecture.md
	./run-tests imports

docs: ## the documentation as a site, into build/docs/index.html
	./run-tests docs

api-documents: ## write docs/openapi.json and etc/policy.yaml.sample anew
	.venv/bin/python scripts/api_documents.py

sample-configuration: ## write etc/raksha.conf.sample anew
	.venv/bin/python scripts/sample_configuration.py

bench: ## measure against its peers, write docs/benchmarks.md (a quarter of an hour, a quiet machine)
	scripts/setup --bench
	.venv/bin/python -m benchmarks.run

bench-service: ## measure the service, write docs/benchmarks-service.md (five minutes, a quiet machine)
	scripts/setup --tests
	.venv/bin/python -m benchmarks.service

quickstart: ## back up and restore a real VM, and tell what happened
	./quickstart

clean: ## remove .venv, caches and what was built
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
