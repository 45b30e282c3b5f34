"""Image towers, text prototypes, decoders and the segmentor that joins them."""
