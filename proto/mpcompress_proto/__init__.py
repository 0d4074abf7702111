"""The wire contract of MPCompress: messages, tensors on the wire, coded units and the .mpc file."""
