"""The units: judged by systemd itself, and run as it would run them."""
