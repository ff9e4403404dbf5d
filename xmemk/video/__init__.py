"""The frame loop, and a whole video: frames in, masks out."""
