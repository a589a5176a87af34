"""Segmentation: an image or a latent and phrases become soft masks.

A method asks a backbone, and a decoder where it has one, and gives masks and how sure they are. Mask maths (attention
maps, guided filter, competition of phrases) is in files of its own, tensors in and out.
"""
