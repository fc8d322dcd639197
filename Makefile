# Only calls scripts; each says at its top what it does.
.PHONY: demo setup test test-faults bench bench-flow lint docs docker-engine

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

bench-flow:
	@scripts/bench-flow

lint:
	@scripts/lint

docs:
	@scripts/docs

docker-engine:
	@scripts/docker-engine
