"""What brings Ambit to a cluster: images, chart, CNI plugin."""
