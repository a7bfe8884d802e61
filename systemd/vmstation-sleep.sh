#!/bin/sh
# Puts this node to sleep. Installed as /opt/vmstation/power/vmstation-sleep.sh; options as `vmstation-autosleep-ctl sleep --help` says.
exec vmstation-autosleep-ctl sleep "$@"
