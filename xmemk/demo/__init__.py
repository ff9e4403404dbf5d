"""The demo: objects followed through a clip by hand-made features and XMem's memory."""
