"""The documented neural codecs behind the contract of every codec: codec files, devices, units, batches."""
