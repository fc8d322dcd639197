# Only calls scripts; each says at its top what it does.
.PHONY: demo setup test test-faults bench lint docs docker-engine

demo:
	@INPUT="$(INPUT)" REFERENCE="$(REFERENCE)" MODE="$(MODE)" scripts/demo

setup:
	@scripts/setup

test:
	@scripts/test

test-faults:
	@scripts/test-faults

bench:
	@scripts/bench

lint:
	@scripts/lint

docs:
	@scripts/docs

docker-engine:
	@scripts/docker-engine
