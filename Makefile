# waxseal: `make demo` shows it, `make test` tests it, `make install` installs it.
PREFIX ?= /usr/local
KIT    := go run ./internal/testkit/kit
DEPS   := bash internal/testkit/deps.sh
# What a build needs, and what the tests need beside it.
BUILD_PACKAGES := runc ca-certificates git
TEST_PACKAGES  := $(BUILD_PACKAGES) mmdebstrap gcc libc6-dev make python3 buildah podman docker.io openssl softhsm2 strace bazel-bootstrap groovy mariadb-server-core mariadb-client-core
# What "make fuzz" runs: what reads evidence, policies and locks.
FUZZ       ?= ./pkg/attest ./pkg/verify ./pkg/policy ./pkg/lock ./pkg/store ./pkg/keys ./pkg/sign
FUZZ_NAMES ?= ^Fuzz(Parse.*|UnmarshalStrict|Git.*|Scan|VEX|Packages|Config|ReadRebuild|OpenArchive)$$

.PHONY: build install test attack fuzz demo demo-keyless bench lint docs clean

# A PKCS#11 token's library is C: waxseal-kms is built for one where a compiler is.
PKCS11 ?= $(if $(shell command -v $(CC) 2>/dev/null),1,0)

build: ## the binaries into bin/; PKCS11=0 leaves tokens out, for a waxseal-kms that needs no libc
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/ ./cmd/waxseal ./cmd/waxseal-engine ./cmd/waxseal-sandbox
	CGO_ENABLED=$(PKCS11) go build -trimpath -ldflags '-s -w' -o bin/ ./cmd/waxseal-kms
	@[ $(PKCS11) = 1 ] || echo "waxseal-kms was built without PKCS#11, which takes a C compiler: install gcc and libc6-dev, and make again"

install: build docs ## binaries, manual pages and completions below PREFIX
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	install bin/waxseal bin/waxseal-engine bin/waxseal-sandbox bin/waxseal-kms $(DESTDIR)$(PREFIX)/bin/
	ln -sf waxseal $(DESTDIR)$(PREFIX)/bin/waxseal-verifier
	install -m 644 bin/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1/
	install -m 644 bin/completion/waxseal $(DESTDIR)$(PREFIX)/share/bash-completion/completions/

docs: build
	mkdir -p bin/man bin/completion
	bin/waxseal man bin/man
	bin/waxseal completion bash > bin/completion/waxseal

demo: ## builds, verifies and promotes examples/webapp, printing every command
	@$(DEPS) $(BUILD_PACKAGES) mmdebstrap
	@bash examples/demo.sh

demo-keyless: ## the same without a key: with Fulcio, a time-stamping authority and Rekor on this machine
	@$(DEPS) $(BUILD_PACKAGES) mmdebstrap
	@bash examples/demo-keyless.sh

test: ## every test but the attacks, the packages' with the race detector; says at the end what was skipped
	@$(DEPS) $(TEST_PACKAGES)
	@go build -o bin/kit ./internal/testkit/kit
	@{ go test -race -json -timeout 150m -parallel $$(($$(nproc) * 3 / 2)) -skip '^TestAttacks$$' ./... || true; } | bin/kit summary

attack: ## builds every hostile Dockerfile of testdata/attack and looks for what got out
	@$(DEPS) $(TEST_PACKAGES)
	go test -count=1 -timeout 30m -v -run '^TestAttacks$$' ./internal/testkit

fuzz: ## what reads evidence, policies and locks against made-up input, FUZZTIME (1m) each; FUZZ=./... FUZZ_NAMES=^Fuzz for all
	@bash internal/testkit/fuzz.sh '$(FUZZ_NAMES)' $(FUZZ)

bench: build ## waxseal against sigstore-go, slsa-verifier, cosign and buildctl, the gateway and waxseal run against none, as ratios
	@$(DEPS) $(TEST_PACKAGES) dpkg-dev autoconf automake libtool libonig-dev flex bison
	@$(KIT) bench

lint: ## go vet and gofmt always, golangci-lint where it is installed
	@left=$$(gofmt -l cmd internal pkg attestations); test -z "$$left" || { echo "gofmt would change $$left" >&2; exit 1; }
	go vet ./...
	@if command -v golangci-lint >/dev/null; then golangci-lint run; fi

clean: ## what was built, and the caches of tests and demo
	rm -rf bin .cache .demo
