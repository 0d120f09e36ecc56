"""Boards as they run: runners, emulators, the serial link, bench and chat."""
