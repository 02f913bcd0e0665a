"""The simplest server of transformers' `generate`, a peer of ours: `python -m benchmarks.simplest_server --model DIR`.

A POST of {"prompt": [ids], "max_tokens": N} gets {"ids": [...], "first": S}, greedily; S: seconds from the request to
its first token, which a server that streams could have sent then. What waits when a batch is done is the next
batch: it is padded to its longest prompt and goes on to its longest answer.
"""

import argparse
import json
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from transformers import LlamaForCausalLM


class Server(ThreadingHTTPServer):
    """A thread a connection, of which as many may come at once as there are clients in any load."""

    daemon_threads, request_queue_size = True, 128


Waiting = tuple[list[int], int, "queue.SimpleQueue[tuple[list[int], float]]"]


def generate(model, batch: list[Waiting]) -> None:
    """Answer a batch; every answer has as many tokens as it asks for."""
    longest, most = max(len(prompt) for prompt, *_ in batch), max(length for _, length, _ in batch)
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, *_ in batch])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, *_ in batch])
    ticks: list[float] = []

    def tick(ids: torch.Tensor, _scores: object, **_) -> torch.Tensor:
        ticks.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool)

    options = {"max_new_tokens": most, "min_new_tokens": most, "do_sample": False, "pad_token_id": 0}
    found = model.generate(ids, attention_mask=mask, stopping_criteria=[tick], **options)[:, longest:].tolist()
    for (_, length, reply), answer in zip(batch, found, strict=True):
        reply.put((answer[:length], ticks[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--batch", type=int, default=32, help="the most answers of a batch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = LlamaForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    waiting: queue.Queue[Waiting] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is said of a request."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            came, reply = time.perf_counter(), queue.SimpleQueue()
            waiting.put((body["prompt"], body["max_tokens"], reply))
            ids, first = reply.get()
            content = json.dumps({"ids": ids, "first": first - came}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"at http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    while True:
        batch = [waiting.get()]
        while len(batch) < options.batch and not waiting.empty():
            batch.append(waiting.get())
        generate(model, batch)


if __name__ == "__main__":
    main()
