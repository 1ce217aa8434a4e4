// Calls a server as Go programs do: each line of the output is a status, a label and what was tried.
package main

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"strings"
)

const text = `{"text": "good"}`

func main() {
	server, picture := os.Args[1], os.Args[2]
	image, err := os.ReadFile(picture)
	check(err)
	texts, images := server+"/predict/text", server+"/predict/classifier"

	plain, err := http.NewRequest("POST", texts, strings.NewReader(text))
	send("plain", plain, err)
	expecting, err := http.NewRequest("POST", texts, strings.NewReader(text))
	check(err)
	expecting.Header.Set("Expect", "100-continue")
	send("expecting", expecting, nil)
	trailing, err := http.NewRequest("POST", images, io.MultiReader(bytes.NewReader(image))) // of a length that it does not know
	check(err)
	trailing.Trailer = http.Header{"X-Sum": {"abc"}}
	send("trailing", trailing, nil)

	var form bytes.Buffer
	writer := multipart.NewWriter(&form)
	part, err := writer.CreateFormFile("file", "für \"uns\".png")
	check(err)
	_, err = part.Write(image)
	check(err)
	check(writer.Close())
	filled, err := http.NewRequest("POST", images, &form)
	check(err)
	filled.Header.Set("Content-Type", writer.FormDataContentType())
	send("form", filled, nil)
}

func send(what string, request *http.Request, err error) {
	check(err)
	if request.Header.Get("Content-Type") == "" && strings.HasSuffix(request.URL.Path, "text") {
		request.Header.Set("Content-Type", "application/json")
	}
	answer, err := http.DefaultClient.Do(request)
	check(err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	check(err)
	label := string(body)
	for _, known := range []string{"good", "bright"} {
		if strings.Contains(label, `"label":"`+known+`"`) {
			label = known
		}
	}
	fmt.Println(answer.StatusCode, label, what)
}

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
