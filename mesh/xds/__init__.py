"""The control plane: topology + contract + endpoints -> Plan -> Envoy resources -> checked snapshot -> ADS.

All of it is pure but `server/`, which holds the sockets, and `__main__.py`, which reads the files.
"""
