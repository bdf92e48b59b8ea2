"""A small network service: answers every request with HTTP 200 and `OK NAME`.

tcpd.py ADDRESS PORT NAME [--delay SECONDS]     listen after a delay, as a guest that boots
tcpd.py --fd N NAME                             serve the listening socket that was inherited
"""

import _socket  # without the enums of `socket`, and `threading`, half the time to start
import _thread
import sys
import time


def answer(client, body):
    """One request, one answer; a client may also just connect and leave."""
    try:
        client.settimeout(10)
        client.recv(65536)
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        client.sendall(head.encode() + body)
    except OSError:
        pass
    finally:
        client.close()


def listen(address, port):
    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(64)
    return listener


def main(args):
    if args[0] == "--fd":
        listener, name = _socket.socket(fileno=int(args[1])), args[2]
    else:
        time.sleep(float(args[4]) if len(args) > 4 else 0)
        listener, name = listen(args[0], int(args[1])), args[2]
    body = f"OK {name}\n".encode()
    while True:
        client = _socket.socket(fileno=listener._accept()[0])
        _thread.start_new_thread(answer, (client, body))


if __name__ == "__main__":
    main(sys.argv[1:])
