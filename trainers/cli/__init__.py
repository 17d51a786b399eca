"""The commands: each an absl script of its own, all of them verbs of `zoo`."""
