# Only calls scripts; each says at its top what it does.
.PHONY: demo setup test test-faults lab bench bench-flow bench-ekv bench-runner lint docs docker-engine

demo:
	@INPUT="$(INPUT)" REFERENCE="$(REFERENCE)" MODE="$(MODE)" scripts/demo

setup:
	@scripts/setup

test:
	@scripts/test

test-faults:
	@scripts/test-faults

lab:
	@scripts/lab

bench:
	@scripts/bench

bench-flow:
	@scripts/bench-flow

bench-ekv:
	@scripts/bench-ekv

bench-runner:
	@scripts/bench-runner

lint:
	@scripts/lint

docs:
	@scripts/docs

docker-engine:
	@scripts/docker-engine
