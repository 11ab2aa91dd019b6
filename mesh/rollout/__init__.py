"""Walks a canary's weight up by steps while Envoy's own statistics say that it is as good as stable."""
