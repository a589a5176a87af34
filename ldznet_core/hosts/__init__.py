"""One file a host: whoever owns the VAE, the text encoder and the UNet. A host encodes, embeds, extracts, captures."""
