#!/bin/sh
# A launcher starts the command behind its own words.
while [ "${1#exp_}" = "$1" ]; do shift; done
exec "$@"
