"""Pure networks: tensors in, tensors out. Nothing here knows a backbone, a file or a picture."""
