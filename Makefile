# Dormouse: `make help` lists what there is.
#
# Cargo, the image builder and npm each know what is fresh; only npm's part needs stamps here.

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PURGE ?= 0
STEP := .ci/step
DORMOUSE := target/release/dormouse
# For the tests: where `make image` put what it built, unless the caller says otherwise.
WITH_IMAGES = images="$${DORMOUSE_TEST_IMAGES:-$$(.ci/home)}" && DORMOUSE_TEST_IMAGES="$$images"
WEB_SOURCES := $(shell find web/src web/public web/index.html web/*.ts web/tsconfig*.json -type f 2>/dev/null)

.PHONY: help
help: ## this list
	@echo "Dormouse: Postgres that sleeps."
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1#\2/p' Makefile | awk -F'#' '{ printf "%-20s %s\n", $$1, $$2 }'

.PHONY: up
up: ## build what is not built, then run the server in the foreground (the first time some 15 to 20 minutes on 2 cores)
	@[ -e images/.build/out-17 ] || echo "The first time builds PostgreSQL, the kernel, the image and the server: some 15 to 20 minutes on 2 cores."
	@.ci/need up
	@$(MAKE) -s console
	@$(MAKE) -s image
	@exec $(DORMOUSE) up

.PHONY: server
server: ## build the dormouse command and the load test
	@$(STEP) "server" cargo build --release --bins --package dormouse-api --package dormouse-images --package dormouse-vmm --package dormouse-loadtest

.PHONY: image
image: server ## build kernel, Postgres, template and golden snapshot into an image (cached by content)
	@.ci/need image
	@$(STEP) "image" $(DORMOUSE) image build

.PHONY: image-18
image-18: server ## the same of PostgreSQL 18, a second image
	@.ci/need image
	@$(STEP) "image of PostgreSQL 18" $(DORMOUSE) image build --postgres 18

.PHONY: oracle
oracle: ## build native PostgreSQL of the same source, the yardstick (images/.build/oracle)
	@.ci/need oracle
	@$(STEP) "native PostgreSQL" images/postgres/oracle.sh images/.build

.PHONY: oracle-18
oracle-18: ## the same of PostgreSQL 18 (images/.build/oracle-18)
	@.ci/need oracle
	@$(STEP) "native PostgreSQL 18" images/postgres/oracle.sh images/.build 18

.PHONY: console
console: web/dist/index.html ## build the console (web/dist)

web/node_modules/.package-lock.json: web/package.json web/package-lock.json
	@$(STEP) "console's packages" npm --prefix web ci --no-audit --no-fund --loglevel error
	@touch $@

web/dist/index.html: web/node_modules/.package-lock.json $(WEB_SOURCES)
	@$(STEP) "console" npm --prefix web run --silent build
	@touch $@

.PHONY: test
test: ## everything: unit tests, the console in a browser, PostgreSQL on real KVM
	@.ci/need test
	@$(MAKE) -s console
	@$(MAKE) -s image
	@$(MAKE) -s image-18
	@$(MAKE) -s oracle
	@$(MAKE) -s test-kernel
	@$(MAKE) -s test-console
	@$(MAKE) -s test-rust

# In a folder of its own, so that this VMM is never taken for the one to ship; what it is made of is shared with the rest, which
# needs the same selection of packages, for that decides which features they have (a Cargo before 1.91 compiles it twice).
TESTING_VMM = env CARGO_BUILD_BUILD_DIR=target cargo test --release --workspace --exclude dormouse-loadtest \
	--features dormouse-vmm/crash-points,dormouse-vmm/shared-folder --target-dir target/testing --test crash --test jail

.PHONY: testing-vmm
testing-vmm: ## a VMM for tests: it can be made to die at each step of suspend and resume, and show a folder to its guest
	@$(STEP) "VMM for tests" $(TESTING_VMM) --no-run

.PHONY: testing-server
testing-server: ## a server for tests: it can be made to die at each of its steps
	@$(STEP) "server for tests" cargo build --release --bin dormouse-testing --features dormouse-api/crash-points --package dormouse-api --package dormouse-images --package dormouse-vmm --package dormouse-loadtest

.PHONY: test-image
test-image: server oracle ## an image with the modules of PostgreSQL's own tests, and these tests (images/.build/suites-17)
	@$(STEP) "test image" target/release/dormouse-image --home target/test-image build --tests
	@$(STEP) "PostgreSQL's tests" images/postgres/suites.sh images/.build

SUITES = cargo test --release --package dormouse-loadtest --test postgres -- --include-ignored --nocapture --test-threads 1

.PHONY: test-postgres
test-postgres: testing-vmm test-image ## all of PostgreSQL's own suites: core, isolation, extensions
	@$(STEP) "PostgreSQL's suites" $(SUITES)

.PHONY: test-postgres-18
test-postgres-18: testing-vmm oracle-18 server ## the same of PostgreSQL 18
	@$(STEP) "test image of PostgreSQL 18" target/release/dormouse-image --home target/test-image build --tests --postgres 18
	@$(STEP) "PostgreSQL 18's tests" images/postgres/suites.sh images/.build 18
	@DORMOUSE_TEST_POSTGRES=18 $(STEP) "PostgreSQL 18's suites" $(SUITES)

.PHONY: test-rust
test-rust: testing-vmm testing-server test-image ## the workspace's tests, with those on real KVM (loadtest/tests) last
	@$(STEP) "unit tests" cargo test --release --workspace --exclude dormouse-loadtest
	@$(STEP) "tests of crashes and of the jail" $(TESTING_VMM)
	@$(STEP) "nothing of the tests in what is shipped" \
		sh -c 'test -f target/release/dormouse && test -f target/release/dormouse-vmm && grep -q DORMOUSE_CRASH_AT target/testing/release/dormouse-vmm && ! grep -l DORMOUSE_CRASH_AT target/release/dormouse target/release/dormouse-vmm'
	@$(WITH_IMAGES) $(STEP) "tests of the whole" cargo test --release --package dormouse-loadtest

.PHONY: test-heavy
test-heavy: image oracle ## much data (COPY of 2 GB, 1,000 tables) and many databases (1,000 clones, 1,000 sessions)
	@$(WITH_IMAGES) DORMOUSE_TEST_HEAVY=1 $(STEP) "tests with much data" cargo test --release --package dormouse-loadtest --test heavy --test crowd -- --test-threads=1 --nocapture

.PHONY: test-kernel
test-kernel: ## the kernel's unit tests
	@$(STEP) "kernel tests" cargo test --release --manifest-path images/kernel/fs-tests/Cargo.toml --features layer --target-dir target/kernel-tests

.PHONY: test-console
test-console: console ## the console's tests, the last of them in headless Chromium
	@$(WITH_IMAGES) $(STEP) "console tests" npm --prefix web run --silent test

.PHONY: test-svm
test-svm: ## boot, answer, suspend, resume on stock kvm_amd under QEMU's software SVM
	@.ci/need svm
	@$(MAKE) image
	@$(WITH_IMAGES) $(STEP) "software SVM" .ci/svm/run

# BENCH: more options, such as BENCH='--work select,tpcb'.
.PHONY: bench
bench: ## speed beside native PostgreSQL: pgbench, a scan, COPY, an aggregate (some 5 minutes)
	@.ci/need bench
	@$(MAKE) -s image
	@$(MAKE) -s oracle
	@$(STEP) "speed" .ci/bench speed $(BENCH)

# STEADY: other options than these, such as STEADY='--minutes 5'.
STEADY ?= --minutes 30
.PHONY: steady
steady: ## half an hour of TPC-B, then: data intact, upkeep seen to run, no memory lost
	@.ci/need bench
	@$(MAKE) -s image
	@$(MAKE) -s oracle
	@$(STEP) "steady life" .ci/bench steady $(STEADY)

.PHONY: third-party
third-party: ## write THIRD-PARTY.md again from what the build uses
	@node .ci/third-party.mjs > THIRD-PARTY.md.new && mv THIRD-PARTY.md.new THIRD-PARTY.md

BUILT := target images/.build images/kernel/target web/dist web/node_modules

.PHONY: clean
clean: ## remove what was built, after listing it; databases and their images stay
	@[ ! -s target/packages-installed ] || cp target/packages-installed .packages-installed
	@.ci/clear $(BUILT) || { rm -f .packages-installed; exit 1; }
	@[ ! -s .packages-installed ] || { mkdir -p target && mv .packages-installed target/packages-installed; }

.PHONY: uninstall
uninstall: ## as clean; with PURGE=1 also all databases. Names the Debian packages that were installed
	@[ ! -s target/packages-installed ] || \
		echo "installed by make up, and left: apt-get remove $$(sort -u target/packages-installed | tr '\n' ' ')"
	@.ci/clear $(if $(filter 1,$(PURGE)),--purge) $(BUILT)
