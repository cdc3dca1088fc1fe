package main

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// A page of a listing:
//
//	<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
//	  <Name>examplebucket</Name>
//	  <Prefix>scribe/</Prefix>
//	  <EncodingType>url</EncodingType>
//	  <IsTruncated>true</IsTruncated>
//	  <NextContinuationToken>1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM=</NextContinuationToken>
//	  <Contents>
//	    <Key>scribe/a+b.seg.gz</Key>
//	    <LastModified>2026-11-22T21:00:00.000Z</LastModified>
//	    <ETag>"599bab3ed2c697f1d26842727561fd94"</ETag>
//	    <Size>857</Size>
//	  </Contents>
//	</ListBucketResult>
//
// Keys are percent-encoded if EncodingType says so, as a form is: XML has no
// words for some of the characters that a key may have.

const maxListPage = 8 << 20 // bytes

// s3Listed is an object in a listing.
type s3Listed struct {
	key      string
	size     int64
	etag     string
	modified time.Time
}

// s3Page is one answer to list.
type s3Page struct {
	objects []s3Listed
	next    string // continuation token; "" = the last page
}

// list calls each for every object whose key begins with prefix and sorts behind
// after, in order of key, until each returns an error, which it then returns.
func (c *s3Client) list(ctx context.Context, prefix, after string, each func(s3Listed) error) error {
	token := ""
	for {
		page, err := c.listPage(ctx, prefix, after, token, 0)
		if err != nil {
			return err
		}
		for _, o := range page.objects {
			if err := each(o); err != nil {
				return err
			}
			after = o.key
		}
		if token = page.next; token == "" {
			return nil
		}
	}
}

// listPage returns one page, of at most so many objects; 0 = as the server likes.
// A page that brings nothing new is an error: a listing must end.
func (c *s3Client) listPage(ctx context.Context, prefix, after, token string, most int) (*s3Page, error) {
	query := url.Values{"list-type": {"2"}, "encoding-type": {"url"}, "prefix": {prefix}}
	if most > 0 {
		query.Set("max-keys", fmt.Sprint(most))
	}
	if token != "" {
		query.Set("continuation-token", token)
	} else if after != "" {
		query.Set("start-after", after)
	}
	call := &s3Call{op: s3List, method: http.MethodGet, query: query, header: http.Header{}}
	var page *s3Page
	call.accept = func(resp *http.Response) error {
		b, err := io.ReadAll(io.LimitReader(resp.Body, maxListPage))
		if err != nil {
			return err
		}
		if page, err = parseListPage(b); err == nil {
			err = page.check(prefix, after, token)
		}
		if err != nil {
			return c.notS3(call, resp, err.Error())
		}
		return nil
	}
	resp, err := c.do(ctx, call)
	if err != nil {
		return nil, err
	}
	return page, resp.Body.Close()
}

// parseListPage reads the body of an answer to list.
func parseListPage(b []byte) (*s3Page, error) {
	var x struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		EncodingType          string
		IsTruncated           bool
		NextContinuationToken string
		Contents              []struct {
			Key          string
			Size         int64
			ETag         string
			LastModified time.Time
		}
	}
	if err := xml.Unmarshal(b, &x); err != nil {
		return nil, fmt.Errorf("no listing: %w: %s", err, firstLine(b))
	}
	if x.IsTruncated != (x.NextContinuationToken != "") {
		return nil, fmt.Errorf("no listing: truncated is %v, token is %.80q", x.IsTruncated, x.NextContinuationToken)
	}
	page := &s3Page{next: x.NextContinuationToken}
	for _, o := range x.Contents {
		key := o.Key
		if x.EncodingType == "url" {
			var err error
			if key, err = url.QueryUnescape(key); err != nil {
				return nil, fmt.Errorf("no listing: key: %w", err)
			}
		}
		if key == "" || o.Size < 0 {
			return nil, fmt.Errorf("no listing: key %.80q has %d bytes", key, o.Size)
		}
		page.objects = append(page.objects, s3Listed{key, o.Size, o.ETag, o.LastModified})
	}
	return page, nil
}

// check reports what is not as it was asked for.
func (p *s3Page) check(prefix, after, token string) error {
	if p.next != "" && (p.next == token || len(p.objects) == 0) {
		return fmt.Errorf("no listing: it goes on with %.80q, where it was", p.next)
	}
	for _, o := range p.objects {
		if !strings.HasPrefix(o.key, prefix) || o.key <= after {
			return fmt.Errorf("no listing: key %.80q after %.80q, asked for %.80q", o.key, after, prefix)
		}
		after = o.key
	}
	return nil
}
