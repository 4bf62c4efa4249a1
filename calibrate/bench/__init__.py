"""A load client for any OpenAI-compatible server, in runs that are compared: `python -m calibrate.bench`.

It needs neither torch nor vllm; aiohttp comes with `pip install 'lorasim[bench]'`.
"""
