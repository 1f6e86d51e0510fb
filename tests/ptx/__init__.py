"""The PTX emulator and its tests. A package, so that pytest keeps this folder (and its profile.py) off sys.path."""
