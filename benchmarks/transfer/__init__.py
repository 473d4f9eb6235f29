"""The KV transfer over TCP beside two plain sockets, on links of known rates."""
