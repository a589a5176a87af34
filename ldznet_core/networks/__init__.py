"""Pure networks: tensors in, tensors out. Nothing here knows a host, a file or a picture."""
