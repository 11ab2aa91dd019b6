"""Who is who: SPIFFE ids, the local certificate authority, certificate files that Envoy watches, development tokens."""
