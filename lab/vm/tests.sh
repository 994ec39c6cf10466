#!/bin/sh
# Runs the tests of several packages in one machine, from binaries that
# `go test -c` has made, and says of each package what became of it.
#
#   tests.sh FOLDER-OF-BINARIES PACKAGE-FOLDER...
#
# TEST_FLAGS are flags for the binaries, as -test.short.
binaries=$1
shift
failed=0
for package; do
	began=$(date +%s)
	result=ok
	(cd "$package" && "$binaries/$(basename "$package").test" -test.timeout 40m $TEST_FLAGS) || { result=FAIL failed=1; }
	echo "$result $package $(($(date +%s) - began))s"
done
exit $failed
