"""The MPCompress service: streams of feature tensors in, coded units out, and back. Importing this loads nothing."""
