"""Fashion-MNIST: what each kind of image attention brings to one CNN, and a small ViT whose attention is drawn."""
