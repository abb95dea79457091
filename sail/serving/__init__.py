"""The vLLM server as a supervised process: start, client, weight sync. See policy_server.py for the whole."""
