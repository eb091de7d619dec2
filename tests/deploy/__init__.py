"""The installer: its logic on a fake root, and the real thing in a Debian tree."""
