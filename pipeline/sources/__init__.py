"""`--input` to images: what is listed, what it is, how it is read and decoded, and masks that come with it."""
