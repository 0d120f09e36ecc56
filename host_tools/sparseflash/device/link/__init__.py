"""The serial link: frames, the device client, the host board's process."""
