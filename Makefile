## make run                      start everything on this machine and process a small sample plan; runs until Ctrl-C
## make run PDF=plan.pdf         the same with your plan
## make run PDF=plan.pdf ONCE=1  stop when the upload ends; succeeds only if it is complete
## make test                     check, then run every test, with real servers and a real browser
## make check                    check formatting, lint and types
## make setup                    only install uv and the locked Python packages
## make clean                    remove the installed packages and all caches; your data in var/ stays

.PHONY: help run test check setup clean

help:
	@sed -n 's/^## //p' Makefile

run: setup
	@exec .venv/bin/python -m deploy.local $${PDF:+--pdf "$$PDF"} $(if $(filter-out 0,$(ONCE)),--once)

test: check
	@.venv/bin/python -m deploy.temporal
	@.venv/bin/python -m tests.servers.versitygw || [ -z "$$CI" ]
	@.venv/bin/python -m tests.servers.workerd || [ -z "$$CI" ]
	@.venv/bin/python -m tests.servers.docker || [ -z "$$CI" ]
	@.venv/bin/python -m tests.servers.compose || [ -z "$$CI" ]
	@.venv/bin/python -m tests.servers.kustomize || [ -z "$$CI" ]
	.venv/bin/python -m pytest -n auto --dist loadgroup

check: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

setup:
	@deploy/setup.sh

clean:
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
