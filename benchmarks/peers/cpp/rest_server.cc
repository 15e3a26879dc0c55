// Predict over REST: an epoll loop of one thread, HTTP/1.1 with a Content-Length, one session run for each request.
//
// A stand-in for TensorFlow Serving, which it is not: the least that a C++ server over the same library has to do.
// Only well-formed requests of the benchmark are understood; anything else ends its connection.
// rest_server PORT LIBRARY [NAME DIRECTORY INPUT OUTPUT]...
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <iostream>
#include <string_view>

#include "model.h"

constexpr size_t kReadBytes = 1 << 18;

// {"instances": [[1.0, 2.0]]}: the numbers go to `values`, and how many each depth holds is the shape.
std::vector<int64_t> parse(std::string_view body, std::vector<float>& values) {
  const char* at = body.data() + std::min(body.find('['), body.size());
  const char* end = body.data() + body.size();
  std::vector<int64_t> shape, counts;
  size_t depth = 0;
  while (at < end) {
    switch (*at) {
      case '[':
        if (++depth > counts.size()) counts.resize(depth), shape.resize(depth, -1);
        counts[depth - 1] = 0;
        ++at;
        break;
      case ']':
        if (depth == 0) throw Failed("a ] without its [");
        if (shape[depth - 1] >= 0 && shape[depth - 1] != counts[depth - 1]) throw Failed("rows of unequal lengths");
        shape[depth - 1] = counts[depth - 1];
        if (--depth == 0) return shape;
        ++counts[depth - 1];
        ++at;
        break;
      case ',':
      case ' ':
      case '\n':
        ++at;
        break;
      default:
        float value;
        auto read = std::from_chars(at, end, value);
        if (read.ec != std::errc() || depth == 0) throw Failed("not a number");
        values.push_back(value);
        ++counts[depth - 1];
        at = read.ptr;
    }
  }
  throw Failed("instances do not end");
}

void write_rows(std::string& out, const float*& value, TF_Tensor* tensor, int depth) {
  if (depth == pTF_NumDims(tensor)) {
    char text[32];
    out.append(text, std::to_chars(text, text + sizeof text, *value++).ptr);
    return;
  }
  out += '[';
  for (int64_t i = 0; i < pTF_Dim(tensor, depth); ++i) {
    if (i) out += ", ";
    write_rows(out, value, tensor, depth + 1);
  }
  out += ']';
}

class Server {
 public:
  explicit Server(const Models& models) : models_(models) {}

  // A whole answer, for the path of a request and its body.
  std::string answer(std::string_view path, std::string_view body) {
    constexpr std::string_view before = "/v1/models/", after = ":predict";
    std::string text;
    const char* status = "200 OK";
    try {
      if (path.size() < before.size() + after.size()) throw Failed("no such path");
      auto found = models_.find(path.substr(before.size(), path.size() - before.size() - after.size()));
      if (found == models_.end()) throw Failed("no such model");
      floats_.clear();
      Tensor tensor = new_tensor(parse(body, floats_));
      if (count(tensor) != floats_.size()) throw Failed("rows of unequal lengths");
      std::copy(floats_.begin(), floats_.end(), values(tensor));
      Tensor out = found->second->run(tensor);
      const float* value = values(out);
      text = "{\"predictions\": ";
      write_rows(text, value, out.get(), 0);
      text += "}";
    } catch (const Failed& error) {
      status = "400 Bad Request";
      text = "{\"error\": \"the request fits no model\"}";
    }
    return std::string("HTTP/1.1 ") + status + "\r\nContent-Type: application/json\r\nContent-Length: " +
           std::to_string(text.size()) + "\r\n\r\n" + text;
  }

 private:
  const Models& models_;
  std::vector<float> floats_;
};

class Connection {
 public:
  Connection(int socket, Server& server) : socket_(socket), server_(server) {}
  ~Connection() { close(socket_); }

  // Read, answer and write what can be; false ends the connection.
  bool turn() {
    static std::vector<char> buffer(kReadBytes);
    while (true) {
      ssize_t size = read(socket_, buffer.data(), buffer.size());
      if (size == 0 || (size < 0 && errno != EAGAIN)) return false;
      if (size < 0) break;
      in_.append(buffer.data(), size);
      if (static_cast<size_t>(size) < buffer.size()) break;
    }
    size_t begun = 0;
    while (true) {
      if (head_ == 0) {
        size_t end = in_.find("\r\n\r\n", begun);
        if (end == std::string::npos) break;
        if (!read_head(std::string_view(in_).substr(begun, end - begun))) return false;
        head_ = end + 4 - begun;
        in_.reserve(begun + head_ + length_);
      }
      if (in_.size() - begun < head_ + length_) break;
      out_ += server_.answer(path_, std::string_view(in_).substr(begun + head_, length_));
      begun += head_ + length_;
      head_ = 0;
    }
    in_.erase(0, begun);
    return flush();
  }

 private:
  bool read_head(std::string_view head) {
    size_t path = head.find(' ') + 1;
    path_ = head.substr(path, head.find(' ', path) - path);
    std::string lower(head);
    std::transform(lower.begin(), lower.end(), lower.begin(), ::tolower);
    size_t length = lower.find("\r\ncontent-length:");
    if (length == std::string::npos) return false;
    length_ = std::strtoull(lower.c_str() + length + 17, nullptr, 10);
    return true;
  }

  bool flush() {
    while (!out_.empty()) {
      ssize_t size = send(socket_, out_.data(), out_.size(), MSG_NOSIGNAL);
      if (size < 0) return errno == EAGAIN;
      out_.erase(0, size);
    }
    return true;
  }

  int socket_;
  Server& server_;
  std::string in_, out_, path_;
  size_t head_ = 0, length_ = 0;
};

int main(int argc, char** argv) {
  Models models = load_models(argc - 2, argv + 2);
  Server server(models);
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  int on = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(std::stoi(argv[1]));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) || listen(listener, 1024)) {
    std::cerr << "port " << argv[1] << ": " << std::strerror(errno) << "\n";
    return 1;
  }
  int queue = epoll_create1(0);
  epoll_event asked{EPOLLIN, {}}, came[256];
  asked.data.ptr = nullptr;
  epoll_ctl(queue, EPOLL_CTL_ADD, listener, &asked);
  while (true) {
    int ready = epoll_wait(queue, came, 256, -1);
    for (int i = 0; i < ready; ++i) {
      auto* connection = static_cast<Connection*>(came[i].data.ptr);
      if (connection != nullptr) {
        if (!connection->turn()) delete connection;
        continue;
      }
      int client = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK);
      if (client < 0) continue;
      setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      // An edge for every change: a full socket that has room again is such a change, too.
      asked.events = EPOLLIN | EPOLLOUT | EPOLLET;
      asked.data.ptr = new Connection(client, server);
      epoll_ctl(queue, EPOLL_CTL_ADD, client, &asked);
    }
  }
}
