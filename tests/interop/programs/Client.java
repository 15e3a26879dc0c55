// What the JDK's HttpClient gets: `java Client.java URL FILE` posts the file in several ways, and prints a line for each.

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.stream.IntStream;

public class Client {
    static void ask(String name, HttpClient client, URI url, BodyPublisher body, boolean expect) throws Exception {
        var request = HttpRequest.newBuilder(url).timeout(Duration.ofSeconds(60)).expectContinue(expect).POST(body);
        var response = client.send(request.header("Content-Type", "application/json").build(), BodyHandlers.ofString());
        System.out.println(name + "\t" + response.version() + "\t" + response.statusCode() + "\t" + response.body());
    }

    public static void main(String[] arguments) throws Exception {
        var url = URI.create(arguments[0]);
        var file = Path.of(arguments[1]);
        var body = BodyPublishers.ofFile(file);
        // The default asks for an upgrade to h2c on every connection's first request.
        var fresh = HttpClient.newHttpClient();
        ask("default", fresh, url, body, false);
        ask("default again", fresh, url, body, false);
        var chunks = BodyPublishers.ofInputStream(() -> {
            try {
                return Files.newInputStream(file);
            } catch (java.io.IOException error) {
                throw new java.io.UncheckedIOException(error);
            }
        });
        ask("default, chunked", HttpClient.newHttpClient(), url, chunks, false);
        ask("default, expect", HttpClient.newHttpClient(), url, body, true);
        var plain = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        ask("HTTP/1.1", plain, url, body, false);
        ask("HTTP/1.1, chunked", plain, url, chunks, false);
        ask("HTTP/1.1, expect", plain, url, body, true);
        var request = HttpRequest.newBuilder(url).POST(body).build();
        var many = IntStream.range(0, 20).mapToObj(i -> fresh.sendAsync(request, BodyHandlers.ofString())).toList();
        for (var one : many) {
            var response = one.get();
            System.out.println("many\t" + response.version() + "\t" + response.statusCode() + "\t" + response.body());
        }
    }
}
