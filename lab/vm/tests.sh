#!/bin/sh
# Runs the tests of several packages in one machine, from binaries that
# `go test -c` has made, and says of each package what became of it.
#
#   tests.sh FOLDER-OF-BINARIES PACKAGE-FOLDER...
#
# TEST_FLAGS are flags for the binaries, as -test.short; of QUICK, lines of a
# binary's name and an expression, that of a package chooses its tests.
binaries=$1
shift
failed=0
for package; do
	began=$(date +%s)
	result=ok
	name=$(basename "$package")
	some=$(echo "$QUICK" | sed -n "s/^$name //p")
	(cd "$package" && "$binaries/$name.test" -test.timeout 80m $TEST_FLAGS -test.run "$some") || { result=FAIL failed=1; }
	echo "$result $package $(($(date +%s) - began))s"
done
exit $failed
