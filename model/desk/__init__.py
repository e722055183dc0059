"""The desk: a local page on which people annotate with the dial, and the server behind it (`grainmill annotate`)."""
