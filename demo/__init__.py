"""The demonstration: a real vision transformer cut in two, with MPCompress between the halves."""
