package lock_test

import (
	"strings"
	"testing"

	"github.com/waxseal/waxseal/pkg/lock"
)

func TestPURL(t *testing.T) {
	for uri, want := range map[string]string{
		// Debian and its kin.
		"http://deb.example/debian/pool/main/c/curl/curl_7.88.1-10+deb12u5_amd64.deb":                        "pkg:deb/debian/curl@7.88.1-10%2Bdeb12u5?arch=amd64",
		"http://deb.example/debian/pool/main/g/gcc-12/libstdc%2b%2b6_12.2.0-14_amd64.deb":                    "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14?arch=amd64",
		"https://deb.example/debian-security/pool/updates/main/o/openssl/libssl3_3.0.15-1~deb12u1_arm64.deb": "pkg:deb/debian/libssl3@3.0.15-1~deb12u1?arch=arm64",
		"http://archive.example/ubuntu/pool/universe/j/jq/jq_1.6-2.1ubuntu3_amd64.deb":                       "pkg:deb/ubuntu/jq@1.6-2.1ubuntu3?arch=amd64",
		"http://ports.example/ubuntu-ports/pool/main/j/jq/jq_1.7.1-2_arm64.deb":                              "pkg:deb/ubuntu/jq@1.7.1-2?arch=arm64",
		"https://apt.example/linux/debian/dists/bookworm/pool/stable/amd64/docker-ce_5%3a24.0.7-1_amd64.deb": "pkg:deb/debian/docker-ce@5:24.0.7-1?arch=amd64",
		"https://apt.example/pool/v/vim_2%253a9.0.1378-2_amd64.deb":                                          "pkg:deb/debian/vim@2:9.0.1378-2?arch=amd64",
		"http://snapshot.example/archive/debian/20260301T000000Z/pool/main/a/apt/apt_2.6.1_all.deb":          "pkg:deb/debian/apt@2.6.1?arch=all",
		"http://deb.example/debian/pool/main/u/udpkg/udpkg_1.20_amd64.udeb":                                  "pkg:deb/debian/udpkg@1.20?arch=amd64",
		"http://deb.example/debian/dists/bookworm/InRelease":                                                 "",
		"http://deb.example/debian/dists/bookworm/main/binary-amd64/by-hash/SHA256/0123456789abcdef":         "",
		"https://files.example/downloads/google-chrome-stable_current_amd64.deb":                             "",
		// Alpine.
		"https://dl.example/alpine/v3.22/main/x86_64/busybox-1.37.0-r18.apk":      "pkg:apk/alpine/busybox@1.37.0-r18?arch=x86_64",
		"https://dl.example/alpine/edge/main/aarch64/py3-gtk-3-1.2_alpha1-r0.apk": "pkg:apk/alpine/py3-gtk-3@1.2_alpha1-r0?arch=aarch64",
		"https://dl.example/alpine/edge/main/x86_64/libstdc++-14.2.0-r6.apk":      "pkg:apk/alpine/libstdc%2B%2B@14.2.0-r6?arch=x86_64",
		"https://packages.example/os/x86_64/wolfi-baselayout-20230201-r24.apk":    "pkg:apk/wolfi/wolfi-baselayout@20230201-r24?arch=x86_64",
		"https://dl.example/alpine/v3.22/main/x86_64/APKINDEX.tar.gz":             "",
		"https://files.example/releases/app-1.0-r1.apk":                           "",
		"https://files.example/x86_64/app-release.apk":                            "",
		// PyPI.
		"https://files.example/packages/63/70/6e/requests-2.31.0-py3-none-any.whl":                                                      "pkg:pypi/requests@2.31.0",
		"https://files.example/packages/ab/cd/0123/charset_normalizer-3.3.2-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl": "pkg:pypi/charset-normalizer@3.3.2",
		"https://files.example/packages/ab/cd/0123/Foo.Bar__baz-1.0-1-py2.py3-none-any.whl":                                             "pkg:pypi/foo-bar-baz@1.0",
		"https://files.example/packages/ab/cd/0123/torch-2.1.0+cpu-cp311-cp311-linux_x86_64.whl":                                        "pkg:pypi/torch@2.1.0%2Bcpu",
		"https://mirror.example/whl/torch-2.1.0%2Bcpu-cp311-cp311-linux_x86_64.whl#sha256=00":                                           "pkg:pypi/torch@2.1.0%2Bcpu",
		"https://files.example/packages/9d/be/10/requests-2.31.0.tar.gz":                                                                "pkg:pypi/requests@2.31.0",
		"https://files.example/packages/source/p/python-dateutil/python-dateutil-2.8.2.tar.gz":                                          "pkg:pypi/python-dateutil@2.8.2",
		"https://nexus.example/repository/pypi/packages/zope.interface/6.1/zope.interface-6.1.tar.gz":                                   "pkg:pypi/zope-interface@6.1",
		"https://files.example/packages/aa/bb/cc/pytz-2023.3.post1.zip":                                                                 "pkg:pypi/pytz@2023.3.post1",
		"https://files.example/packages/aa/bb/cc/backports.zoneinfo-0.2.1-py3-none-any.whl.metadata":                                    "",
		"https://pypi.example/simple/requests/":                                                                                         "",
		"https://files.example/downloads/tool-1.4.tar.gz":                                                                               "",
		// npm.
		"https://npm.example/lodash/-/lodash-4.17.21.tgz":                                  "pkg:npm/lodash@4.17.21",
		"https://npm.example/@babel/core/-/core-7.23.2.tgz":                                "pkg:npm/%40babel/core@7.23.2",
		"https://npm.example/@babel%2fcore/-/core-7.23.2.tgz":                              "pkg:npm/%40babel/core@7.23.2",
		"https://npm.example/artifactory/api/npm/all/@types/node/-/@types/node-20.8.9.tgz": "pkg:npm/%40types/node@20.8.9",
		"https://npm.example/react/-/react-18.3.0-canary-1a2b.tgz?cache=0":                 "pkg:npm/react@18.3.0-canary-1a2b",
		"https://npm.example/string_decoder/-/string_decoder-1.3.0.tgz":                    "pkg:npm/string_decoder@1.3.0",
		"https://npm.example/lodash":                                                       "",
		"https://npm.example/@babel%2fcore":                                                "",
		"https://npm.example/lodash/-/other-4.17.21.tgz":                                   "",
		// Go.
		"https://proxy.example/golang.org/x/net/@v/v0.17.0.zip":                       "pkg:golang/golang.org/x/net@v0.17.0",
		"https://proxy.example/github.com/!burnt!sushi/toml/@v/v1.3.2.mod":            "pkg:golang/github.com/BurntSushi/toml@v1.3.2",
		"https://proxy.example/github.com/docker/docker/@v/v24.0.7+incompatible.zip":  "pkg:golang/github.com/docker/docker@v24.0.7%2Bincompatible",
		"https://proxy.example/artifactory/api/go/go/gopkg.in/yaml.v3/@v/v3.0.1.info": "pkg:golang/gopkg.in/yaml.v3@v3.0.1",
		"https://proxy.example/golang.org/x/sys/@v/v0.0.0-20231018-0123456789ab.zip":  "pkg:golang/golang.org/x/sys@v0.0.0-20231018-0123456789ab",
		"https://proxy.example/golang.org/x/net/@v/list":                              "",
		"https://proxy.example/golang.org/x/net/@latest":                              "",
		"https://proxy.example/sumdb/sum.example/lookup/golang.org/x/net@v0.17.0":     "",
		"https://proxy.example/github.com/!1/x/@v/v1.0.0.zip":                         "",
		// Crates.
		"https://static.example/crates/serde/serde-1.0.190.crate":                    "pkg:cargo/serde@1.0.190",
		"https://static.example/crates/serde-derive/serde-derive-1.0.0-rc.1+b.crate": "pkg:cargo/serde-derive@1.0.0-rc.1%2Bb",
		"https://crates.example/api/v1/crates/serde/1.0.190/download":                "pkg:cargo/serde@1.0.190",
		"https://static.example/crates/serde/1.0.190/download":                       "pkg:cargo/serde@1.0.190",
		"https://index.example/se/rd/serde":                                          "",
		"https://index.example/config.json":                                          "",
		// Maven.
		"https://repo.example/maven2/org/apache/commons/commons-lang3/3.12.0/commons-lang3-3.12.0.jar":                  "pkg:maven/org.apache.commons/commons-lang3@3.12.0",
		"https://repo.example/maven2/org/apache/commons/commons-lang3/3.12.0/commons-lang3-3.12.0.pom":                  "pkg:maven/org.apache.commons/commons-lang3@3.12.0?type=pom",
		"https://nexus.example/repository/maven-all/com/google/guava/guava/32.1.3-jre/guava-32.1.3-jre.jar":             "pkg:maven/com.google.guava/guava@32.1.3-jre",
		"https://repo.example/maven2/io/netty/netty-tcnative/2.0.61.Final/netty-tcnative-2.0.61.Final-linux-x86_64.jar": "pkg:maven/io.netty/netty-tcnative@2.0.61.Final?classifier=linux-x86_64",
		"https://repo.example/org/junit/junit-bom/5.9.1/junit-bom-5.9.1.module":                                         "pkg:maven/org.junit/junit-bom@5.9.1?type=module",
		"https://repo.example/maven2/junit/junit/4.13.2/junit-4.13.2.jar":                                               "pkg:maven/junit/junit@4.13.2",
		"https://repo.example/maven2/org/apache/commons/commons-lang3/3.12.0/commons-lang3-3.12.0.jar.sha1":             "",
		"https://repo.example/maven2/org/apache/commons/commons-lang3/maven-metadata.xml":                               "",
		// Gems.
		"https://gems.example/gems/rails-7.1.1.gem":                      "pkg:gem/rails@7.1.1",
		"https://gems.example/gems/nokogiri-1.15.4-x86_64-linux.gem":     "pkg:gem/nokogiri@1.15.4?platform=x86_64-linux",
		"https://gems.example/gems/nokogiri-1.15.4-arm64-darwin-22.gem":  "pkg:gem/nokogiri@1.15.4?platform=arm64-darwin-22",
		"https://gems.example/gems/mini-mime-types-data-3.2023.1003.gem": "pkg:gem/mini-mime-types-data@3.2023.1003",
		"https://gems.example/specs.4.8.gz":                              "",
		// Nothing of all that.
		"":                             "",
		"not a url":                    "",
		"https://host":                 "",
		"https://host/":                "",
		"https://host/%zz/x_1_a.deb":   "",
		"https://host/a%0ab/x_1_a.deb": "",
		"https://git.example/a.git/info/refs?service=git-upload-pack": "",
	} {
		if got := lock.PURL(uri); got != want {
			t.Errorf("%s\n got %q\nwant %q", uri, got, want)
		}
	}
}

func FuzzPURL(f *testing.F) {
	f.Add("http://deb.example/debian/pool/main/c/curl/curl_7.88.1-10+deb12u5_amd64.deb")
	f.Add("https://proxy.example/github.com/!burnt!sushi/toml/@v/v1.3.2.mod")
	f.Add("https://npm.example/@a%2f..%2fb/-/b-1.tgz")
	f.Add("x://-/-/-1.tgz")
	f.Add("https://repo.example/a/b/c/1/c-1-.jar")
	f.Fuzz(func(t *testing.T, uri string) {
		p := lock.PURL(uri)
		if p == "" {
			return
		}
		if !strings.HasPrefix(p, "pkg:") || !strings.Contains(p, "@") || strings.ContainsAny(p, " \n\r\t\"<>") || strings.Contains(p, "..%2F") {
			t.Errorf("%q is called %q", uri, p)
		}
		for i := range len(p) {
			if p[i] <= ' ' || p[i] >= 0x7f {
				t.Fatalf("%q is called %q", uri, p)
			}
		}
	})
}
