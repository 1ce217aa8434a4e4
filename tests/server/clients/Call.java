// Calls a server as Java programs do: each line of the output is a status, a label and what was tried.
import java.io.ByteArrayInputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.util.zip.GZIPInputStream;

public class Call {
    static final byte[] TEXT = "{\"text\": \"good\"}".getBytes(StandardCharsets.UTF_8);
    static final HttpClient OFFERING = HttpClient.newHttpClient(); // the default: HTTP/2 is offered by Upgrade
    static final HttpClient PLAIN = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

    public static void main(String[] arguments) throws Exception {
        URI uri = URI.create(arguments[0]);
        for (int time = 0; time < 3; time++) send("default", OFFERING, uri, BodyPublishers.ofByteArray(TEXT), false);
        send("chunked", OFFERING, uri, BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(TEXT)), false);
        send("expecting", OFFERING, uri, BodyPublishers.ofByteArray(TEXT), true);
        send("HTTP/1.1", PLAIN, uri, BodyPublishers.ofByteArray(TEXT), false);
        URI health = uri.resolve("/v2/health/ready");
        System.out.println(OFFERING.send(HttpRequest.newBuilder(health).build(), BodyHandlers.ofString()).statusCode() + " GET");

        HttpURLConnection old = (HttpURLConnection) uri.toURL().openConnection();
        old.setDoOutput(true);
        old.setRequestProperty("Content-Type", "application/json");
        old.setRequestProperty("Accept-Encoding", "gzip");
        old.getOutputStream().write(TEXT);
        byte[] answer = old.getInputStream().readAllBytes();
        if ("gzip".equals(old.getContentEncoding())) answer = new GZIPInputStream(new ByteArrayInputStream(answer)).readAllBytes();
        System.out.println(old.getResponseCode() + label(new String(answer, StandardCharsets.UTF_8)) + " HttpURLConnection");
    }

    static void send(String what, HttpClient client, URI uri, HttpRequest.BodyPublisher body, boolean expect) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(uri)
            .header("Content-Type", "application/json").expectContinue(expect).POST(body).build();
        var answer = client.send(request, BodyHandlers.ofString());
        System.out.println(answer.statusCode() + label(answer.body()) + " " + what);
    }

    static String label(String body) {
        return body.contains("\"label\":\"good\"") ? " good" : " " + body;
    }
}
