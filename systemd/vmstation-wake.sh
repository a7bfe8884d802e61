#!/bin/sh
# Wakes nodes. Installed as /opt/vmstation/power/vmstation-wake.sh; options as `vmstation-wake --help` says.
exec vmstation-wake "$@"
