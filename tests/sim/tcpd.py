"""A small network service: answers every request with HTTP 200 and `OK NAME`.

tcpd.py ADDRESS PORT NAME [--delay SECONDS]     listen after a delay, as a guest that boots
tcpd.py --fd N NAME                             serve the listening socket that was inherited
"""

import socket
import sys
import threading
import time


def answer(client, body):
    """One request, one answer; whoever only connects and leaves is served as well."""
    with client:
        try:
            client.settimeout(10)
            client.recv(65536)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            client.sendall(head.encode() + body)
        except OSError:
            pass


def listen(address, port):
    """A listening TCP socket."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(64)
    return listener


def main(args):
    """Serve until killed."""
    if args[0] == "--fd":
        listener, name = socket.socket(fileno=int(args[1])), args[2]
    else:
        time.sleep(float(args[4]) if len(args) > 4 else 0)
        listener, name = listen(args[0], int(args[1])), args[2]
    body = f"OK {name}\n".encode()
    while True:
        client, _ = listener.accept()
        threading.Thread(target=answer, args=(client, body), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1:])
