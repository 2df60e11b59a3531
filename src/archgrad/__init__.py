"""archgrad finds a neural network's architecture by gradient, under the limit that your device sets."""
