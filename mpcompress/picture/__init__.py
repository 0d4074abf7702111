"""Features as pictures: one frame in, one bitstream out, and back.

    features ─► quantizer ─► packing ─► strips ─► PictureEngine (vtm, vvenc, x265) ─► bitstreams
    features ◄─ quantizer ◄─ packing ◄─ strips ◄─ decoder (PyAV, DecoderApp) ◄──────── bitstreams

numpy only. An engine that is not installed raises CodecUnavailableError with what to install; nothing here needs torch.
"""
