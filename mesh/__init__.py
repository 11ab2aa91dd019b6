"""The platform: it knows contracts, values and proxies, and no service."""
